"""gymnasium, Stable-Baselines3 and diffusers. Each stands alone: importing one does not import another's library."""
