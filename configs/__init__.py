"""The YAML files of methods and datasets, and which of them a protocol uses (`recipes`)."""
