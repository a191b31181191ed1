//! Who runs what in one VM: address spaces, programs, modules and their verdicts.
