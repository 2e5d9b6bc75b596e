"""The loss on a batch: its costs, its gradient, its Hessian, and what a step of training makes of it."""
