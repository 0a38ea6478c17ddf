"""The forward/backward core: operations in pairs, Adam, the gradient check. It imports system, for its threads."""
