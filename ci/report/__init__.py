"""What people read of a run: HTML, plots, JUnit, annotations, the live view."""
