"""All plots, in one style (`style`): of retrieval, classification, published results, and of a training run.

`python -m alip.eval.plots --run RUN` plots a run of train.py.
"""
