"""Using what was learned: from a model (a run, an artefact, a checkpoint) to predictions and exported files."""
