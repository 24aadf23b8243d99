//! The documents of a YAML stream, told apart by their markers alone: one that is no YAML costs the others nothing.

use std::borrow::Cow;

/// The documents of a YAML stream, each with the number of its first line that says something.
pub(crate) fn split(text: &str) -> Vec<(usize, Cow<'_, str>)> {
    let mut documents = Vec::new();
    // The document being read: where it begins, and what its marker's line holds beside the marker.
    let (mut begin, mut begin_line, mut on_marker) = (0, 1, "");
    let mut end_at = |end: usize, begin: usize, line: usize, on_marker: &str| {
        let document = text.get(begin..end).unwrap_or_default();
        if !is_blank(on_marker) {
            documents.push((line, Cow::Owned(format!("{on_marker}\n{document}"))));
        } else if !document.lines().all(|line| is_blank(line) || line.starts_with('%')) {
            let blank: usize = document.split_inclusive('\n').take_while(|line| is_blank(line)).map(str::len).sum();
            let line = line + usize::from(begin != 0) + newlines(&document[..blank]);
            documents.push((line, Cow::Borrowed(&document[blank..])));
        }
    };
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.trim_end().strip_prefix("---").filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        let marker = marker.or_else(|| (line.trim_end() == "...").then_some(""));
        if let Some(rest) = marker {
            end_at(at, begin, begin_line, on_marker);
            (begin, begin_line, on_marker) = (at + line.len(), number + 1, rest);
        }
        at += line.len();
    }
    end_at(at, begin, begin_line, on_marker);
    documents
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// How many lines end in it.
pub(crate) fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}
