"""What leaves a partner: events, their cost, the noise, and the one exit for values."""
