"""What a reconstruction is worth: frozen cases, numbers, calibration, reports and pictures."""
