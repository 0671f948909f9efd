"""Stages that train nothing: what they share, and those that make models of models."""
