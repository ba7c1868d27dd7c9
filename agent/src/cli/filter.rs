//! `--filter key=value`, as Docker has it: filters of one key are alternatives,
//! different keys and several labels must all hold.

use std::collections::BTreeMap;

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    key: &'static str,
    value: String,
}

impl Filter {
    /// A parser of filters with these keys.
    pub(super) fn with(
        keys: &'static [&'static str],
    ) -> impl Fn(&str) -> Result<Self, String> + Clone + Send + Sync + 'static {
        move |text| {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| format!("a filter is key=value, with key {}", keys.join(", ")))?;
            let key = keys.iter().find(|known| **known == key).ok_or_else(|| {
                format!("there is no filter {key:?} here: the keys are {}", keys.join(", "))
            })?;
            Ok(Self { key, value: value.to_owned() })
        }
    }
}

/// Whether something passes `filters`; `matches` tells whether it has a value
/// for a key.
pub(super) fn pass(filters: &[Filter], matches: impl Fn(&str, &str) -> bool) -> bool {
    filters.iter().all(|filter| {
        if filter.key == "label" {
            return matches(filter.key, &filter.value);
        }
        filters.iter().filter(|f| f.key == filter.key).any(|f| matches(f.key, &f.value))
    })
}

/// Whether `labels` have `wanted`: `KEY` alone, or `KEY=VALUE`.
pub(super) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        let parse = Filter::with(&["id", "label", "name"]);
        texts.iter().map(|text| parse(text).unwrap()).collect()
    }

    fn passes(texts: &[&str]) -> bool {
        let labels = BTreeMap::from([
            ("tier".to_owned(), "db".to_owned()),
            ("site".to_owned(), String::new()),
        ]);
        pass(&filters(texts), |key, value| match key {
            "name" => "mydrupal".contains(value),
            "label" => has_label(&labels, value),
            _ => value == "abc",
        })
    }

    #[test]
    fn one_key_is_alternatives_and_several_keys_must_all_hold() {
        assert!(passes(&[]));
        assert!(passes(&["name=dru"]));
        assert!(passes(&["name=nothing", "name=dru"]));
        assert!(!passes(&["name=nothing"]));
        assert!(passes(&["name=dru", "id=abc"]));
        assert!(!passes(&["name=dru", "id=x"]));
    }

    #[test]
    fn every_label_must_hold() {
        assert!(passes(&["label=tier", "label=site="]));
        assert!(passes(&["label=tier=db"]));
        assert!(!passes(&["label=tier=web"]));
        assert!(!passes(&["label=tier", "label=other"]));
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let parse = Filter::with(&["id", "name"]);
        assert_eq!(
            parse("nam=x").unwrap_err(),
            "there is no filter \"nam\" here: the keys are id, name"
        );
        assert_eq!(parse("x").unwrap_err(), "a filter is key=value, with key id, name");
        assert_eq!(parse("name=a=b").unwrap().value, "a=b");
    }
}
