"""The stages of a run: one file a kind, each from a run to a :class:`cpift.runs.stage.Stage`; ``graph`` lists them."""
