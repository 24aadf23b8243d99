//! `docs/reliability.md` names, for each promise, the tests that hold it up. They have to be there.

use std::fs;
use std::path::{Path, PathBuf};

/// A link of a page: its text, and where it leads to, below the folder of the page.
#[derive(Debug, PartialEq)]
struct Link<'a> {
    text: &'a str,
    target: &'a str,
}

/// The links of a text, but for those to other sites and within the page.
fn links(text: &str) -> Vec<Link<'_>> {
    let link = |(at, _): (usize, &str)| {
        let text_begins = text[..at].rfind('[')?;
        let target = text[at + 2..].split_once(')')?.0.split('#').next()?;
        let here = !target.is_empty() && !target.contains("://");
        here.then_some(Link { text: text[text_begins + 1..at].trim_matches('`'), target })
    };
    text.match_indices("](").filter_map(link).collect()
}

/// Whether a source has a test of this name, by itself or on both datapaths.
fn has_test(source: &str, name: &str) -> bool {
    let declared = format!("fn {name}(");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    let blocks = source.split("on_both_datapaths! {").skip(1).filter_map(|rest| rest.split('}').next());
    let on_both = blocks.into_iter().any(|block| block.split(',').any(|listed| listed.trim() == name));
    lines.iter().enumerate().filter(|(_, line)| line.contains(&declared)).any(|(at, _)| {
        let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        on_both || attributes.into_iter().any(|line| line.starts_with("#[") && line.contains("test"))
    })
}

/// The cells of a table's rows, but for heads and rules.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let row = |line: &'_ str| line.starts_with('|') && !line.starts_with("| ---") && !line.starts_with("| promise |");
    text.lines().filter(move |line| row(line)).map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn what_the_page_says_is_there() {
    let page = fs::read_to_string(folder().join("reliability.md")).unwrap();
    let (mut missing, mut tests) = (Vec::new(), 0);
    for Link { text, target } in links(&page) {
        let path = folder().join(target);
        if !path.exists() {
            missing.push(format!("there is no {target}"));
        } else if Path::new(target).extension().is_some_and(|end| end == "rs") && !text.contains([' ', '/', '.']) {
            tests += 1;
            if !has_test(&fs::read_to_string(&path).unwrap(), text) {
                missing.push(format!("{target} has no test {text}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(tests > 50, "{tests} tests are named");
}

#[test]
fn every_promise_has_a_test() {
    let page = fs::read_to_string(folder().join("reliability.md")).unwrap();
    let promises = page.split("## Promises").nth(1).and_then(|rest| rest.split("<!--").next()).unwrap();
    let (mut count, mut bare) = (0, Vec::new());
    for cells in rows(promises) {
        count += 1;
        assert_eq!(cells.len(), 4, "{cells:?}");
        if cells[1..].iter().all(|cell| links(cell).is_empty()) {
            bare.push(cells[0]);
        }
    }
    assert!(count > 20, "{count} promises");
    assert!(bare.is_empty(), "nothing holds up: {bare:?}");
}

#[test]
fn links_and_tests_are_told_from_what_looks_like_them() {
    let text = "[`a`](../a.rs), [b c](b.md#d) [x](#here) [y](https://example.com/) and f[1](2";
    let expected = [("a", "../a.rs"), ("b c", "b.md")].map(|(text, target)| Link { text, target });
    assert_eq!(links(text), expected);
    let source = "#[test]\n/// Why.\nfn one() {\n}\n  #[tokio::test]\n  async fn two() {\nfn three() {\n#[allow(x)]\nfn four() {";
    let found = ["one", "two", "three", "four", "on"].map(|name| has_test(source, name));
    assert_eq!(found, [true, true, false, false, false]);
    let source = "fn one(datapath: Datapath) {\n}\nfn two() {\n}\non_both_datapaths! {\n    one, other, }";
    assert_eq!(["one", "two", "other"].map(|name| has_test(source, name)), [true, false, false]);
}
