"""Fine-tuning: the only code that holds a whole model with its optimizer."""
