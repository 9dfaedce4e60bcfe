"use strict";
// The report's behaviour. Data stands in JSON blocks of the page; text reaches the page as textContent only.
(() => {
  const $ = (id) => document.getElementById(id);
  const LOW_SCORE = 0.5; // below: a low-confidence moment
  const MOST_JUMPS = 40; // gaps or low stretches listed for one masklet
  const index = JSON.parse($("index").textContent);
  const movie = $("movie"), overlay = $("overlay"), stage = $("stage");
  const state = { video: -1, frame: 0, masklet: null, playing: false };
  const loaded = []; // decoded videos, by number
  let film = null; // the decoded video on stage
  let shown = []; // masklets that pass the filter, in list order
  let timer = 0;

  // ---- Decoding -------------------------------------------------------------------------------------------------

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  /** Zigzag varints of `data` from `start` up to `stop`, as numbers. */
  function varints(data, start = 0, stop = data.length) {
    const out = [];
    for (let i = start, value = 0, unit = 1; i < stop; i++) {
      value += (data[i] & 127) * unit;
      unit *= 128;
      if (data[i] < 128) {
        out.push(value % 2 ? -(value + 1) / 2 : value / 2);
        value = 0;
        unit = 1;
      }
    }
    return out;
  }

  const numbers = (text) => varints(bytes(text));
  const sums = (values) => { let total = 0; return values.map((v) => (total += v)); };

  function decodeMasklet(raw) {
    const at = sums(numbers(raw.at));
    const score = numbers(raw.score).map((v) => v / 1000);
    const ends = sums(numbers(raw.lengths));
    const mean = score.reduce((a, b) => a + b, 0) / Math.max(score.length, 1);
    return { ...raw, at, score, ends, mean, lowest: Math.min(...chunked(score)), outlines: bytes(raw.outlines) };
  }

  /** Minima of pieces: spreading a very long array into Math.min would overflow the stack. */
  function chunked(values) {
    const out = [1];
    for (let i = 0; i < values.length; i += 10000) out.push(Math.min(...values.slice(i, i + 10000)));
    return out;
  }

  function decodeVideo(raw) {
    const times = sums(numbers(raw.times_us)).map((v) => v / 1e6);
    const gaps = times.slice(1).map((t, i) => t - times[i]).sort((a, b) => a - b);
    const step = gaps.length ? gaps[gaps.length >> 1] : 1 / 24;
    const masklets = raw.masklets.map(decodeMasklet);
    const frames = sums(numbers(raw.frames));
    return { ...raw, frames, times, step, end: (times[times.length - 1] ?? 0) + step, masklets };
  }

  /** Row of `masklet` on the frame of rank `k`, or -1. */
  function rowAt(masklet, k) {
    const row = upTo(masklet.at, k);
    return row >= 0 && masklet.at[row] === k ? row : -1;
  }

  /** Last position in ascending `values` that is at most `value`, or -1. */
  function upTo(values, value) {
    let low = -1, high = values.length;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] <= value) low = middle; else high = middle;
    }
    return low;
  }

  /** The outline of a masklet on one of its rows: a path in grid units, its top-left corner and its size. */
  function outline(masklet, row) {
    const values = varints(masklet.outlines, row ? masklet.ends[row - 1] : 0, masklet.ends[row]);
    const path = new Path2D();
    let i = 1, ax = 0, ay = 0, left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
    for (let ring = 0; ring < values[0]; ring++) {
      const points = values[i++];
      let x = ax, y = ay;
      for (let p = 0; p < points; p++) {
        x += values[i++];
        y += values[i++];
        if (p) path.lineTo(x, y); else { path.moveTo(x, y); ax = x; ay = y; }
        left = Math.min(left, x); right = Math.max(right, x);
        top = Math.min(top, y); bottom = Math.max(bottom, y);
      }
      path.closePath();
    }
    return { masklet, path, left, top, right, bottom, size: (right - left) * (bottom - top) };
  }

  // ---- Time -----------------------------------------------------------------------------------------------------

  function clock(seconds, decimals = film.step < 0.1 ? 2 : 1) {
    const rest = Math.abs(seconds).toFixed(decimals);
    const hours = Math.floor(rest / 3600), minutes = Math.floor(rest / 60) % 60, left = (rest % 60).toFixed(decimals);
    const tail = left.padStart(decimals ? decimals + 3 : 2, "0");
    return (seconds < 0 ? "-" : "") + (hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes) + ":" + tail;
  }

  const momentOf = (k) => clock(film.origin_s + film.times[k]);

  function seek(k) {
    if (!film || !film.frames.length) return;
    pause();
    show(Math.max(0, Math.min(film.frames.length - 1, k)));
    align();
  }

  /** Brings the picture to the frame that the page shows. */
  function align() {
    if (!hasMovie()) return;
    // The middle of a frame's time on screen: rounding in the container cannot reach its neighbours from there.
    const next = film.times[state.frame + 1] ?? film.times[state.frame] + film.step;
    movie.currentTime = (film.times[state.frame] + next) / 2;
  }

  /** Puts frame `k` into every part of the page; the picture itself follows from the video element. */
  function show(k) {
    state.frame = k;
    paint();
    const text = `${momentOf(k)} · frame ${film.frames[k]}`;
    $("scrub").value = k;
    $("scrub").setAttribute("aria-valuetext", text);
    $("clock").textContent = text;
    $("rows").style.setProperty("--at", `${(100 * film.times[k]) / film.end}%`);
    const now = document.querySelector(".curve .now");
    if (now) placeNow(now);
    document.body.dataset.frame = film.frames[k];
    if (!state.playing) remember();
  }

  const hasMovie = () => Boolean(movie.getAttribute("src"));

  function play() {
    if (!film || film.frames.length < 2) return;
    if (state.frame >= film.frames.length - 1) seek(0);
    state.playing = true;
    playButton();
    if (hasMovie()) movie.play().catch(pause); else tick(performance.now(), film.times[state.frame]);
    follow();
  }

  function pause() {
    if (!state.playing) return;
    state.playing = false;
    clearTimeout(timer);
    movie.pause();
    align(); // a frame or two may have passed since the last one that was announced
    playButton();
    remember();
  }

  function playButton() {
    $("play").setAttribute("aria-label", state.playing ? "Pause" : "Play");
    $("play-shape").setAttribute("d", state.playing ? "M5 3.5h3.6v13H5zM11.4 3.5H15v13h-3.6z" : "M6 3.5v13l11-6.5z");
  }

  /** While the video plays, keep the masks on the very frame that is on screen. */
  function follow() {
    if (!hasMovie()) return;
    const onFrame = (_, meta) => {
      const k = Math.max(0, upTo(film.times, (meta ? meta.mediaTime : movie.currentTime) + 1e-3));
      document.body.dataset.pictured = film.frames[k];
      if (state.playing && k !== state.frame) show(k);
      follow.next();
    };
    follow.next = () => {
      if (movie.requestVideoFrameCallback) movie.requestVideoFrameCallback(onFrame);
      else if (state.playing) requestAnimationFrame(() => onFrame());
    };
    if (!follow.running || !movie.requestVideoFrameCallback) follow.next();
    follow.running = true;
  }

  /** Plays the masks alone, where there is no video. */
  function tick(since, from) {
    const time = from + ((performance.now() - since) / 1000) * Number($("speed").value);
    show(Math.max(0, upTo(film.times, time)));
    if (state.frame >= film.frames.length - 1) pause();
    else if (state.playing) timer = setTimeout(() => tick(since, from), 15);
  }

  // ---- Drawing --------------------------------------------------------------------------------------------------

  function visibleNow() {
    return shown
      .map((m) => ({ m, row: rowAt(m, state.frame) }))
      .filter(({ row }) => row >= 0)
      .map(({ m, row }) => outline(m, row))
      .sort((a, b) => b.size - a.size);
  }

  function paint() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(stage.clientWidth * ratio), height = Math.round(stage.clientHeight * ratio);
    if (overlay.width !== width || overlay.height !== height) { overlay.width = width; overlay.height = height; }
    const draw = overlay.getContext("2d");
    draw.setTransform(1, 0, 0, 1, 0, 0);
    draw.clearRect(0, 0, width, height);
    if (!film) return;
    const scaleX = width / film.grid[0], scaleY = height / film.grid[1];
    const objects = visibleNow();
    if ($("show-dim").checked) dim(draw, objects, scaleX, scaleY);
    if ($("show-masks").checked) for (const o of objects) mask(draw, o, scaleX, scaleY, ratio);
    draw.setTransform(1, 0, 0, 1, 0, 0);
    if ($("show-labels").checked) labels(draw, objects, scaleX, scaleY, ratio);
  }

  const faded = (o) => state.masklet !== null && o.masklet.id !== state.masklet;

  function dim(draw, objects, scaleX, scaleY) {
    draw.fillStyle = "rgb(0 0 0 / 0.66)";
    draw.fillRect(0, 0, overlay.width, overlay.height);
    draw.setTransform(scaleX, 0, 0, scaleY, 0, 0);
    draw.globalCompositeOperation = "destination-out";
    draw.fillStyle = "#000";
    for (const o of objects) if (!faded(o)) draw.fill(o.path, "evenodd");
    draw.globalCompositeOperation = "source-over";
  }

  function mask(draw, o, scaleX, scaleY, ratio) {
    const chosen = o.masklet.id === state.masklet;
    draw.setTransform(scaleX, 0, 0, scaleY, 0, 0);
    draw.lineJoin = "round";
    draw.fillStyle = draw.strokeStyle = o.masklet.colour;
    draw.globalAlpha = $("show-dim").checked ? 0 : faded(o) ? 0.12 : 0.4;
    draw.fill(o.path, "evenodd");
    const line = ((chosen ? 3 : 1.75) * ratio) / scaleX;
    draw.globalAlpha = faded(o) ? 0.45 : 1;
    draw.strokeStyle = "rgb(20 20 22 / 0.75)";
    draw.lineWidth = line + (1.5 * ratio) / scaleX;
    draw.stroke(o.path);
    draw.strokeStyle = o.masklet.colour;
    draw.lineWidth = line;
    draw.stroke(o.path);
    draw.globalAlpha = 1;
  }

  function labels(draw, objects, scaleX, scaleY, ratio) {
    const size = 13 * ratio, pad = 5 * ratio, height = 19 * ratio, taken = [];
    draw.font = `${size}px system-ui, sans-serif`;
    draw.textBaseline = "middle";
    for (const o of [...objects].sort((a, b) => a.masklet.id - b.masklet.id)) {
      const phrase = o.masklet.phrase.length > 28 ? o.masklet.phrase.slice(0, 27) + "…" : o.masklet.phrase;
      const text = objects.length > 24 && faded(o) ? String(o.masklet.id) : `${o.masklet.id} ${phrase}`;
      const width = draw.measureText(text).width + 2 * pad;
      const spot = place(o, width, height, taken, scaleX, scaleY);
      taken.push(spot);
      draw.globalAlpha = faded(o) ? 0.55 : 1;
      draw.fillStyle = o.masklet.colour;
      draw.beginPath();
      if (draw.roundRect) draw.roundRect(spot.x, spot.y, width, height, 4 * ratio); else draw.rect(spot.x, spot.y, width, height);
      draw.fill();
      draw.fillStyle = o.masklet.ink;
      draw.fillText(text, spot.x + pad, spot.y + height / 2 + ratio * 0.5);
      draw.globalAlpha = 1;
    }
  }

  /** The first place near the object that covers no other label; the one that covers least if there is none. */
  function place(o, w, h, taken, scaleX, scaleY) {
    const left = o.left * scaleX, right = o.right * scaleX - w, top = o.top * scaleY, bottom = o.bottom * scaleY;
    const spots = [];
    for (const y of [top - h, top, bottom, top - 2 * h, bottom + h, top - 3 * h, bottom - h]) for (const x of [left, right]) {
      spots.push({ x: clamp(x, 0, overlay.width - w), y: clamp(y, 0, overlay.height - h), w, h });
    }
    const cost = (s) => taken.reduce((sum, t) => sum + shared(s, t), 0);
    return spots.find((s) => cost(s) === 0) ?? spots.reduce((a, b) => (cost(b) < cost(a) ? b : a));
  }

  const clamp = (value, low, high) => Math.max(low, Math.min(value, Math.max(low, high)));
  const shared = (a, b) =>
    Math.max(0, Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x)) * Math.max(0, Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y));

  // ---- The list -------------------------------------------------------------------------------------------------

  const order = {
    id: (a, b) => a.id - b.id,
    length: (a, b) => b.at.length - a.at.length,
    mean: (a, b) => a.mean - b.mean,
    low: (a, b) => a.lowest - b.lowest,
  };

  function filter() {
    const phrase = $("phrase").value, score = Number($("min-score").value), frames = Number($("min-frames").value) || 1;
    $("min-score-out").textContent = score.toFixed(2);
    shown = film.masklets
      .filter((m) => (phrase === "" || m.phrase === phrase.slice(1)) && m.mean >= score && m.at.length >= frames)
      .sort(order[$("order").value]);
    const all = film.masklets.length;
    $("count").textContent = shown.length === all ? `${all}` : `${shown.length} of ${all}`;
    document.body.dataset.shown = shown.map((m) => m.id).join(" ");
    list();
    paint();
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function swatch(colour) {
    const dot = element("span", "swatch");
    dot.style.background = colour;
    return dot;
  }

  function list() {
    const rows = shown.map((m) => {
      const row = element("button", "row"), name = element("span", "name"), strip = element("span", "strip");
      row.type = "button";
      row.dataset.id = m.id;
      row.setAttribute("aria-pressed", m.id === state.masklet);
      row.setAttribute("aria-label", `Masklet ${m.id}, ${m.phrase}, ${plural(m.at.length, "frame")}, mean score ${m.mean.toFixed(2)}`);
      name.append(swatch(m.colour), element("span", "", `${m.id} ${m.phrase}`));
      strip.append(element("canvas"), element("i"));
      row.append(name, strip, element("span", "facts", `${m.at.length} fr · ${m.mean.toFixed(2)}`));
      const item = element("li");
      item.append(row);
      return item;
    });
    if (!rows.length) rows.push(element("li", "empty", film.masklets.length ? "No masklet passes these filters." : "Nothing was found in this video."));
    $("rows").replaceChildren(...rows);
    strips();
  }

  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

  let watcher = null;

  /** Draws each strip when it comes into view, and again when its size changes. */
  function strips() {
    watcher?.disconnect();
    watcher = new IntersectionObserver((entries) => {
      for (const e of entries) if (e.isIntersecting) drawStrip(e.target);
    }, { rootMargin: "300px" });
    for (const canvas of document.querySelectorAll(".strip canvas")) watcher.observe(canvas);
  }

  function drawStrip(canvas) {
    const m = film.masklets.find((one) => one.id === Number(canvas.closest(".row").dataset.id));
    const width = (canvas.width = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1))));
    canvas.height = 1;
    const draw = canvas.getContext("2d");
    draw.fillStyle = m.colour;
    for (const [x, score] of columns(m, width)) {
      draw.globalAlpha = 0.28 + 0.72 * score;
      draw.fillRect(x, 0, 1, 1);
    }
  }

  /** `[x, mean score]` of each of `width` columns over the video's time in which the masklet is there. */
  function columns(m, width) {
    const total = new Float64Array(width), count = new Uint32Array(width);
    m.at.forEach((k, row) => {
      const from = Math.floor((film.times[k] / film.end) * width);
      const until = Math.min(film.times[k + 1] ?? film.end, film.times[k] + film.step * 1.5);
      const to = Math.max(from + 1, Math.round((until / film.end) * width));
      for (let x = from; x < to && x < width; x++) { total[x] += m.score[row]; count[x]++; }
    });
    return [...count.keys()].filter((x) => count[x]).map((x) => [x, total[x] / count[x]]);
  }

  function ticks() {
    const room = Math.max(2, Math.floor($("ticks").clientWidth / 80));
    const steps = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400];
    const every = steps.find((s) => film.end / s <= room) ?? film.end / room;
    const marks = [];
    for (let n = Math.ceil(film.origin_s / every - 1e-9); n * every < film.origin_s + film.end * 0.985; n++) {
      const where = (n * every - film.origin_s) / film.end;
      const mark = element("span", where < 0.02 ? "first" : "", clock(n * every, every < 0.1 ? 2 : every < 1 ? 1 : 0));
      mark.style.left = `${100 * where}%`;
      marks.push(mark);
    }
    $("ticks").replaceChildren(...marks);
  }

  // ---- One masklet ----------------------------------------------------------------------------------------------

  function select(id, { go = false } = {}) {
    const m = film.masklets.find((one) => one.id === id);
    state.masklet = m ? m.id : null;
    for (const row of document.querySelectorAll(".row")) row.setAttribute("aria-pressed", Number(row.dataset.id) === state.masklet);
    document.body.dataset.masklet = state.masklet ?? "";
    if (m && go && rowAt(m, state.frame) < 0) seek(m.at[0]);
    detail(m);
    paint();
    remember();
  }

  function detail(m) {
    const panel = $("detail");
    if (!m) return panel.replaceChildren(...overview());
    const head = element("header"), close = element("button", "close", "Close");
    close.type = "button";
    close.addEventListener("click", () => select(null));
    head.append(swatch(m.colour), element("h2", "", `${m.id} ${m.phrase}`), close);
    const parts = [head];
    if (m.crops.length) parts.push(crops(m));
    parts.push(element("h3", "", "Score"), curve(m), scale(m), facts(m));
    parts.push(...jumps("Away", gapsOf(m), (g) => `${plural(g.frames, "frame")}`));
    parts.push(...jumps("Low confidence", lowsOf(m), (g) => `down to ${g.lowest.toFixed(2)}`));
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
  }

  function overview() {
    const counts = new Map(index.phrases.map((p) => [p, 0]));
    for (const m of film?.masklets ?? []) counts.set(m.phrase, (counts.get(m.phrase) ?? 0) + 1);
    const box = element("div", "phrases");
    for (const [phrase, count] of counts) {
      const button = element("button");
      button.type = "button";
      button.append(element("span", "", phrase), element("span", "", plural(count, "masklet")));
      button.addEventListener("click", () => { if (count) { $("phrase").value = "=" + phrase; filter(); } });
      button.disabled = !count;
      box.append(button);
    }
    return [element("h2", "", "Phrases"), box, element("p", "quiet hint", "Click a mask or a line of the list to see a masklet's life.")];
  }

  function crops(m) {
    const box = element("div", "crops");
    for (const [k, source] of m.crops) {
      const button = element("button"), image = element("img");
      button.type = "button";
      image.src = source;
      image.alt = `Masklet ${m.id} at ${momentOf(k)}`;
      image.width = 176;
      image.height = 110;
      button.append(image, element("span", "", momentOf(k)));
      button.addEventListener("click", () => seek(k));
      box.append(button);
    }
    return box;
  }

  const SVG = "http://www.w3.org/2000/svg";

  function svg(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  const curveX = (m, k) => {
    const first = film.times[m.at[0]], last = film.times[m.at[m.at.length - 1]];
    return last > first ? (100 * (film.times[k] - first)) / (last - first) : 50;
  };
  const curveY = (score) => 4 + 92 * (1 - score);

  function curve(m) {
    const picture = svg("svg", { class: "curve", viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" });
    picture.setAttribute("aria-label", `Score over time: mean ${m.mean.toFixed(2)}, lowest ${m.lowest.toFixed(2)}`);
    picture.append(svg("line", { class: "half", x1: 0, x2: 100, y1: curveY(LOW_SCORE), y2: curveY(LOW_SCORE) }));
    let path = "";
    thin(m).forEach((row, i, rows) => {
      const joined = i && m.at[row] - m.at[rows[i - 1]] === row - rows[i - 1];
      path += `${joined ? "L" : "M"}${curveX(m, m.at[row]).toFixed(2)} ${curveY(m.score[row]).toFixed(1)}${joined ? "" : "h0.4"}`;
    });
    picture.append(svg("path", { class: "line", d: path }), svg("line", { class: "now", y1: 0, y2: 100 }));
    placeNow(picture.lastChild, m);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
      const first = film.times[m.at[0]], last = film.times[m.at[m.at.length - 1]];
      seek(upTo(film.times, first + share * (last - first) + film.step / 2));
    });
    return picture;
  }

  /** At most about 1,500 rows of a masklet, the lowest score of each group among them: a dip must not vanish. */
  function thin(m) {
    const size = Math.ceil(m.at.length / 1500), rows = [];
    for (let start = 0; start < m.at.length; start += size) {
      let best = start;
      for (let row = start; row < Math.min(start + size, m.at.length); row++) if (m.score[row] < m.score[best]) best = row;
      rows.push(best);
    }
    return rows;
  }

  function placeNow(line, m = film.masklets.find((one) => one.id === state.masklet)) {
    const x = curveX(m, state.frame);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.style.visibility = x < 0 || x > 100 ? "hidden" : "visible";
  }

  function scale(m) {
    const box = element("div", "scale");
    box.append(element("span", "", momentOf(m.at[0])), element("span", "", "dashed: 0.5"), element("span", "", momentOf(m.at[m.at.length - 1])));
    return box;
  }

  function facts(m) {
    const box = element("dl"), first = m.at[0], last = m.at[m.at.length - 1];
    const lines = [
      ["First", `${momentOf(first)} · frame ${film.frames[first]}`],
      ["Last", `${momentOf(last)} · frame ${film.frames[last]}`],
      ["Visible", `${plural(m.at.length, "frame")} of ${(last - first + 1).toLocaleString("en")}`],
      ["Score", `mean ${m.mean.toFixed(2)} · lowest ${m.lowest.toFixed(2)}`],
    ];
    for (const [name, value] of lines) box.append(element("dt", "", name), element("dd", "", value));
    return box;
  }

  /** Frames of its life on which the masklet is not there. */
  function gapsOf(m) {
    const out = [];
    for (let row = 1; row < m.at.length; row++) {
      const frames = m.at[row] - m.at[row - 1] - 1;
      if (frames > 0) out.push({ from: m.at[row - 1] + 1, to: m.at[row] - 1, frames });
    }
    return out;
  }

  /** Stretches with a score below LOW_SCORE. */
  function lowsOf(m) {
    const out = [];
    m.score.forEach((score, row) => {
      if (score >= LOW_SCORE) return;
      const last = out[out.length - 1];
      if (last && last.row === row - 1) Object.assign(last, { to: m.at[row], row, lowest: Math.min(last.lowest, score) });
      else out.push({ from: m.at[row], to: m.at[row], row, lowest: score });
    });
    return out;
  }

  function jumps(title, stretches, words) {
    if (!stretches.length) return [];
    const box = element("div", "jumps");
    for (const s of stretches.slice(0, MOST_JUMPS)) {
      const button = element("button");
      button.type = "button";
      button.append(element("span", "", s.from === s.to ? momentOf(s.from) : `${momentOf(s.from)} - ${momentOf(s.to)}`), element("span", "", words(s)));
      button.addEventListener("click", () => seek(s.from));
      box.append(button);
    }
    if (stretches.length > MOST_JUMPS) box.append(element("p", "quiet", `and ${stretches.length - MOST_JUMPS} more`));
    return [element("h3", "", `${title} (${stretches.length})`), box];
  }

  // ---- Videos ---------------------------------------------------------------------------------------------------

  const address = (path) => path.split("/").map(encodeURIComponent).join("/");

  function payload(number) {
    const where = index.videos[number].data;
    if (where.startsWith("#")) return Promise.resolve(JSON.parse($(where.slice(1)).textContent));
    return new Promise((done, fail) => {
      const script = element("script");
      window.maskletData = (_, value) => done(value);
      script.onerror = () => fail(new Error(`${where} is missing: it belongs beside this report`));
      script.src = address(where);
      document.head.append(script);
    });
  }

  function movieSource(number) {
    const where = index.videos[number].video;
    if (!where) return null;
    if (!where.startsWith("#")) return address(where);
    return URL.createObjectURL(new Blob([bytes($(where.slice(1)).textContent)], { type: "video/mp4" }));
  }

  function say(text) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  }

  async function open(number, { frame = null, masklet = null } = {}) {
    pause();
    const about = index.videos[number];
    state.video = number;
    state.masklet = null;
    $("video").value = number;
    document.body.dataset.ready = "";
    const beside = [about.data, about.video].filter((p) => p && !p.startsWith("#"));
    const words = [about.error, about.notice];
    if (beside.length) words.push(`Large parts of this report stand in the folder ${beside[0].split("/")[0]}: keep the two together.`);
    say(words.filter(Boolean).join(" "));
    if (about.data === null) return nothing();
    try {
      loaded[number] ??= decodeVideo(await payload(number));
    } catch (error) {
      say(error.message);
      return nothing();
    }
    if (state.video !== number) return; // another one was chosen meanwhile
    film = loaded[number];
    if (hasMovie()) URL.revokeObjectURL(movie.src);
    const source = movieSource(number);
    if (source) movie.src = source; else movie.removeAttribute("src");
    movie.playbackRate = movie.defaultPlaybackRate = Number($("speed").value);
    layout();
    $("scrub").max = Math.max(0, film.frames.length - 1);
    const phrases = [...new Set(film.masklets.map((m) => m.phrase))];
    $("phrase").replaceChildren(option("", "all"), ...phrases.map((p) => option("=" + p, p)));
    $("min-frames").max = Math.max(1, ...film.masklets.map((m) => m.at.length));
    $("precision").textContent = `masks are drawn to within ${film.tolerance_px} px of the tracked ones`;
    filter();
    ticks();
    if (film.frames.length) seek(frame === null ? 0 : Math.max(0, upTo(film.frames, frame)));
    select(masklet);
    follow();
    document.body.dataset.ready = "yes";
    remember();
  }

  function nothing() {
    film = null;
    shown = [];
    movie.removeAttribute("src");
    $("rows").replaceChildren();
    $("ticks").replaceChildren();
    $("clock").textContent = $("count").textContent = "";
    detail(null);
    paint();
    document.body.dataset.ready = "yes";
  }

  function option(value, text) {
    const made = element("option", "", text);
    made.value = value;
    return made;
  }

  /** Gives the stage the video's shape, within the column and most of the window's height. */
  function layout() {
    if (!film) return;
    const room = stage.parentElement.clientWidth, high = window.innerHeight * 0.68;
    stage.style.aspectRatio = `${film.width} / ${film.height}`;
    stage.style.width = `${Math.floor(Math.min(room, (high * film.width) / film.height))}px`;
    paint();
  }

  // ---- The address: #video=ID&frame=12&masklet=3 -----------------------------------------------------------------

  function remember() {
    if (!film || document.body.dataset.ready !== "yes") return;
    const parts = new URLSearchParams();
    if (index.videos.length > 1) parts.set("video", film.id);
    parts.set("frame", film.frames[state.frame] ?? 0);
    if (state.masklet !== null) parts.set("masklet", state.masklet);
    history.replaceState(null, "", "#" + parts);
  }

  function fromAddress() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const found = index.videos.findIndex((v) => v.id === parts.get("video"));
    const number = (name) => (/^\d+$/.test(parts.get(name) ?? "") ? Number(parts.get(name)) : null);
    const usable = Math.max(0, index.videos.findIndex((v) => v.data !== null));
    const wanted = { frame: number("frame"), masklet: number("masklet") };
    const target = found >= 0 ? found : usable;
    if (target !== state.video || !film) return open(target, wanted);
    if (wanted.frame !== null) seek(Math.max(0, upTo(film.frames, wanted.frame)));
    select(wanted.masklet);
  }

  // ---- Hands ----------------------------------------------------------------------------------------------------

  function neighbour(step) {
    if (!shown.length) return;
    const here = shown.findIndex((m) => m.id === state.masklet);
    const next = here < 0 ? (step > 0 ? 0 : shown.length - 1) : (here + step + shown.length) % shown.length;
    select(shown[next].id, { go: true });
    document.querySelector(`.row[data-id="${shown[next].id}"]`)?.scrollIntoView({ block: "nearest" });
  }

  const keys = {
    ArrowLeft: (e) => seek(state.frame - (e.shiftKey ? 10 : 1)),
    ArrowRight: (e) => seek(state.frame + (e.shiftKey ? 10 : 1)),
    Home: () => seek(0),
    End: () => seek(film.frames.length - 1),
    " ": () => (state.playing ? pause() : play()),
    n: () => neighbour(1),
    p: () => neighbour(-1),
    Escape: () => select(null),
  };

  document.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    if (!act || !film || event.ctrlKey || event.metaKey || event.altKey) return;
    const type = event.target.matches("input, select, textarea") ? event.target.type : "";
    if (type && type !== "checkbox" && event.target.id !== "scrub") return; // the control's own keys
    if (event.key === " " && event.target.matches("button, input[type=checkbox]")) return; // presses the button
    event.preventDefault();
    act(event);
  });

  stage.addEventListener("click", (event) => {
    if (!film) return;
    const box = stage.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * film.grid[0], y = ((event.clientY - box.top) / box.height) * film.grid[1];
    const draw = overlay.getContext("2d");
    draw.setTransform(1, 0, 0, 1, 0, 0);
    const hit = visibleNow().reverse().find((o) => draw.isPointInPath(o.path, x, y, "evenodd"));
    select(hit ? hit.masklet.id : null);
  });

  $("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const strip = event.target.closest(".strip");
    const id = Number(row.dataset.id);
    if (strip && event.detail) {
      const box = strip.getBoundingClientRect();
      seek(Math.max(0, upTo(film.times, ((event.clientX - box.left) / box.width) * film.end)));
    }
    select(!strip && state.masklet === id ? null : id, { go: !strip });
    if (event.detail) stage.focus({ preventScroll: true }); // after a mouse click, space plays
  });

  $("play").addEventListener("click", () => (state.playing ? pause() : play()));
  $("back").addEventListener("click", () => seek(state.frame - 1));
  $("forward").addEventListener("click", () => seek(state.frame + 1));
  $("scrub").addEventListener("input", () => seek(Number($("scrub").value)));
  $("speed").addEventListener("change", () => (movie.playbackRate = movie.defaultPlaybackRate = Number($("speed").value)));
  for (const id of ["show-masks", "show-labels", "show-dim"]) $(id).addEventListener("change", paint);
  for (const id of ["phrase", "min-score", "min-frames", "order"]) $(id).addEventListener("input", () => film && filter());
  $("video").addEventListener("change", () => open(Number($("video").value)));
  movie.addEventListener("ended", () => { if (film) show(film.frames.length - 1); pause(); });
  movie.addEventListener("error", () => { if (hasMovie()) say("The browser cannot play the video; the masks are shown alone."), movie.removeAttribute("src"); });
  window.addEventListener("hashchange", fromAddress);
  new ResizeObserver(() => { layout(); if (film) { ticks(); strips(); } }).observe(stage.parentElement);
  window.addEventListener("resize", layout);

  // ---- Start ----------------------------------------------------------------------------------------------------

  $("title").textContent = index.run;
  const videos = index.videos.length;
  $("about").textContent = [plural(videos, "video"), index.model && `model ${index.model}`, index.status !== "complete" && index.status]
    .filter(Boolean).join(" · ");
  $("video").replaceChildren(...index.videos.map((v, i) => option(i, v.status === "done" ? v.id : `${v.id} (${v.status})`)));
  $("video-choice").hidden = videos < 2;
  if (videos) fromAddress();
  else { say("This run has no videos yet."); nothing(); }
})();
