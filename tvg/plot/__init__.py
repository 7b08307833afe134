"""Pictures of predictions, drawn with matplotlib Figure objects and no global pyplot state."""
