"""Memory, barriers, warps and CTAs, and the schedule that runs them."""
