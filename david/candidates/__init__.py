"""Where recipes come from: search spaces, strategies, neighbours; and the pruner that drops them."""
