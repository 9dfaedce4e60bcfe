"""The embedded tiny model (`models/tiny`) and the recipe that produced it (`models/recipe`)."""
