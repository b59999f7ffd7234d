//! The x86 architecture: processor state, paging, segmentation, exceptions and the step interpreter
