"""gymnasium and Stable-Baselines3. Each module stands alone: importing one does not import the other's library."""
