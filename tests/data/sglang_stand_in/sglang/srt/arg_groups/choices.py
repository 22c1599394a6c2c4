MOE_RUNNER_BACKEND_CHOICES = ["auto", "marlin"]
add_moe_runner_backend_choices = MOE_RUNNER_BACKEND_CHOICES.extend
