"""Several processes as one: membership and the few collectives that training needs."""
