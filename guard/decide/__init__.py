"""Decide: from agreed numbers to a verdict (``detector``) and a rung (``ladder``); ``decider`` joins them."""
