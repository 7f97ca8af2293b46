"""A run: train or test one method on one dataset (`run`)."""
