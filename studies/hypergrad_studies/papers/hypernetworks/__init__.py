"""Studies of "Stochastic Hyperparameter Optimization through Hypernetworks" (Lorraine and Duvenaud, 2018)."""
