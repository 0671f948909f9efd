"""Stages that make data of what a model says: samples, their scores, and pairs of them."""
