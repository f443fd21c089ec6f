"""Diffusion chains that know how likely they are: path weights, step variances fitted to the policy, temperature."""
