"""Planning: what a pipeline would take, predicted from the cost of its units, so that no device needs to be there."""
