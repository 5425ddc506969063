//! The settings of the group Access: what is there and has nothing in it is refused.

use super::operator::Operator;
use crate::settings::SPECS;

/// Returns an operator who has set a right value in every source, and the places of all these.
fn everywhere(key: &'static str, value: &str) -> Operator {
    let variable = key.to_ascii_uppercase();
    Operator::new()
        .toml(&format!("{key} = ['{value}']\n"))
        .write(".env", format!("{variable}={value}\n"))
        .env(&variable, value)
        .env(&format!("LASTCALL_{variable}"), value)
        .flag(key, value)
}

#[test]
fn nothing_is_refused_in_every_source_whatever_the_others_have() {
    for (key, value) in [("api_keys", "0123456789abcdef"), ("allowed_origins", "https://a.example")] {
        let variable = key.to_ascii_uppercase();
        let alone = Operator::new;
        let with_others = || everywhere(key, value);
        for start in [&alone as &dyn Fn() -> Operator, &with_others] {
            for nothing in ["", " ", "\t", "\u{a0}", " \n", ",", " , ,", ",,"] {
                for name in [variable.clone(), format!("LASTCALL_{variable}")] {
                    let mut operator = start();
                    operator.sources.environment.retain(|(other, _)| *other != *name);
                    let complaints = operator.env(&name, nothing).complaints();
                    let expected =
                        format!("{key} (environment variable {name}): it is there and has nothing in it");
                    assert!(complaints[0].starts_with(&expected), "{nothing:?}: {complaints:?}");
                    assert_eq!(complaints.len(), 1, "{complaints:?}");
                }
                let mut operator = start();
                operator.sources.command_line.clear();
                let complaints = operator.flag(key, nothing).complaints();
                let flag = key.replace('_', "-");
                let expected = format!("{key} (command line --{flag}): it is there");
                assert!(complaints.len() == 1 && complaints[0].starts_with(&expected), "{complaints:?}");
            }
            for nothing in ["''", "\"\"", "' '", "','", "[]", "[ ]", "['']", "['', ' ']", "{}"] {
                let complaints = start().toml(&format!("port = 1\n{key} = {nothing}\n")).complaints();
                let expected = format!("{key} (config/lastcall.toml:2): it is there");
                assert!(
                    complaints.len() == 1 && complaints[0].starts_with(&expected),
                    "{nothing}: {complaints:?}"
                );
            }
            for nothing in ["", " ", "''", "' '", "\"\"", "','", " # no key"] {
                for name in [variable.clone(), format!("export LASTCALL_{variable}")] {
                    let complaints = start().write(".env", format!("{name}={nothing}\n")).complaints();
                    let name = name.trim_start_matches("export ");
                    let expected = format!("{key} ({name} in .env): it is there");
                    assert!(
                        complaints.len() == 1 && complaints[0].starts_with(&expected),
                        "{nothing}: {complaints:?}"
                    );
                }
            }
        }
        everywhere(key, value).settings();
    }
}

#[test]
fn an_empty_variable_whose_name_is_almost_that_of_such_a_setting_is_refused() {
    for (name, meant) in [
        ("LASTCALL_API_KEY", "did you mean api_keys?"),
        ("LASTCALL_ALLOWED_ORIGIN", "did you mean allowed_origins?"),
        ("lastcall_api_keys", "did you mean LASTCALL_API_KEYS?"),
    ] {
        let line = Operator::new().write(".env", format!("{name}=\n"));
        for operator in [Operator::new().env(name, ""), line] {
            let complaints = operator.complaints();
            assert!(complaints.len() == 1 && complaints[0].contains(meant), "{complaints:?}");
        }
    }
}

#[test]
fn every_setting_of_the_group_needs_content_and_no_other_does() {
    let needing: Vec<_> = SPECS.iter().filter(|spec| spec.needs_content()).map(|spec| spec.key).collect();
    let of_group: Vec<_> =
        SPECS.iter().filter(|spec| spec.group.0 == "Access").map(|spec| spec.key).collect();
    assert_eq!(needing, of_group);
    assert!(SPECS.iter().all(|spec| !spec.secret || spec.needs_content()), "every secret is of the group");
    for spec in SPECS.iter().filter(|spec| !spec.needs_content()) {
        let loaded =
            Operator::new().env(&spec.variable(), "").write(".env", format!("{}=\n", spec.variable()));
        assert_eq!(loaded.source(spec.key), Operator::new().source(spec.key), "{}", spec.key);
    }
}
