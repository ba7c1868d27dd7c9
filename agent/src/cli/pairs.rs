//! Options of the form `KEY=VALUE` that may be given several times.

use std::collections::BTreeMap;

/// `KEY=VALUE`, or `KEY` alone with an empty value.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("there is no key before '='".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// A map of what an option was given; the same key twice would lose one.
pub(super) fn unique<T>(
    option: &str,
    given: Vec<(String, T)>,
) -> anyhow::Result<BTreeMap<String, T>> {
    let mut map = BTreeMap::new();
    for (key, value) in given {
        anyhow::ensure!(!map.contains_key(&key), "{option} {key}=... is given twice");
        map.insert(key, value);
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_a_key() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(pair("encrypted").unwrap(), ("encrypted".to_owned(), String::new()));
        assert!(pair("=b").is_err());
    }

    #[test]
    fn keys_given_twice_are_refused() {
        let given = vec![("a".to_owned(), 1), ("a".to_owned(), 2)];
        assert_eq!(
            unique("--label", given).unwrap_err().to_string(),
            "--label a=... is given twice"
        );
    }
}
