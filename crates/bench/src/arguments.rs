//! Values of the command line: what measures nothing is refused before anything starts.

/// Parses a number of things, at least one.
pub(crate) fn count(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| "it must be a whole number from 1 on".to_owned())
}

/// Parses a number over 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "it must be a number over 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_that_measure_something_are_accepted() {
        assert_eq!((count("1"), positive("0.5")), (Ok(1), Ok(0.5)));
        for text in ["0", "-1", "", "many"] {
            assert!(count(text).is_err() && positive(text).is_err(), "{text}");
        }
        assert!(count("0.5").is_err() && positive("inf").is_err() && positive("NaN").is_err());
    }
}
