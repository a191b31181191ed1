//! What numbers on the command line may be: checked before anything is built.

use std::str::FromStr;

/// The most vCPUs of a guest. With more, all that these commands emulate takes hours.
const MAX_VCPUS: u32 = 8;

/// A number of things of which at least one is needed.
pub(crate) fn some<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    text.parse()
        .ok()
        .filter(|number| *number >= T::from(1))
        .ok_or_else(|| "it has to be a whole number, 1 or more".to_owned())
}

/// Virtual CPUs.
pub(crate) fn vcpus(text: &str) -> Result<u32, String> {
    some(text)
        .ok()
        .filter(|vcpus| *vcpus <= MAX_VCPUS)
        .ok_or_else(|| format!("it has to be a whole number from 1 to {MAX_VCPUS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_vcpus_and_nothing_are_refused_with_what_is_right() {
        assert_eq!((some::<u64>("1"), vcpus("8")), (Ok(1), Ok(MAX_VCPUS)));
        for wrong in ["0", "-1", "x", "", "1.5", "99999999999999999999"] {
            assert!(some::<u64>(wrong).unwrap_err().contains("1 or more"));
            assert!(vcpus(wrong).unwrap_err().contains("1 to 8"));
        }
        assert!(vcpus("9").is_err());
    }
}
