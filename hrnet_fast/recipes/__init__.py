"""Recipes: how a network is trained and evaluated, as checked dataclasses and YAML."""
