"""The fit: sweeps, priors, the choice of terms, and calibration."""
