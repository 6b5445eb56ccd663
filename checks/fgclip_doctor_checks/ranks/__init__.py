"""8xx: several ranks: do they train one model, and on the candidates of all."""
