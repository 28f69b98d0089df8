"""Policy optimisation from outside the step: prompts, continuations, rewards, advantages, and the loop over them."""
