.PHONY: setup check format test slow demo

setup:  ## create .venv with everything a developer needs
	uv sync

check:  ## lint, format, types, import layers
	uv run ruff check .
	uv run ruff format --check .
	uv run mypy
	uv run lint-imports

format:
	uv run ruff check --fix .
	uv run ruff format .

test:  ## the default tests; under ten minutes on two cores
	uv run pytest

slow:  ## the long ones
	uv run pytest -m slow

demo:
	uv run masklet demo
