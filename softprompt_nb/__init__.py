__version__ = "0.1.0"

import warnings

warnings.filterwarnings("ignore", message="IProgress not found") # bars fall back to text, which is what stored notebooks need
