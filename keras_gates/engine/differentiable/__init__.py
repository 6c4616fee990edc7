"""Functions whose derivative is a call of a kernel, and which can be differentiated twice."""
