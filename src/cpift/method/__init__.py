"""The method of the paper, on arrays and checkpoints: regions, groups, fusion, freezing. No pipeline, no trainer."""
