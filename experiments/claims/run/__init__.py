"""A set of claims tested: registered, trained for, judged and reported."""
