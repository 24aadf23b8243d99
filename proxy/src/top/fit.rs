//! Text in the room that there is: whole where it fits, and where it does not, one sees so.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Stands for what is left out.
const MORE: char = '…';

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// A name in so many columns. One that has no room loses something behind its middle: names of Services that begin alike end unlike,
/// and those of Nodes are often told apart by their first part.
pub fn cut(text: &str, room: usize) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let Some(rest) = room.checked_sub(1) else { return String::new() };
    let front = ends(text.chars(), (rest * 2).div_ceil(3));
    let back = ends(text.chars().rev(), rest - width(&front));
    front + &MORE.to_string() + &back.chars().rev().collect::<String>()
}

/// As many letters as there is room for.
fn ends(letters: impl Iterator<Item = char>, room: usize) -> String {
    let mut taken = 0;
    let fits = |letter: &char| {
        taken += width(letter.encode_utf8(&mut [0; 4]));
        taken <= room
    };
    letters.take_while(fits).collect()
}

/// A line in as many as it needs. It is broken between words; only a word that is longer than a line is broken itself.
pub fn wrap(line: &Line<'_>, room: usize) -> Vec<Line<'static>> {
    let letters: Vec<(String, Style)> =
        line.styled_graphemes(Style::default()).map(|letter| (letter.symbol.to_owned(), letter.style)).collect();
    let is_space = |at: usize| letters[at].0 == " ";
    let (mut lines, mut start) = (Vec::new(), 0);
    while start < letters.len() && room > 0 {
        let mut taken = 0;
        let fits = |(letter, _): &&(String, Style)| {
            taken += width(letter);
            taken <= room
        };
        // A letter that is wider than the room has a line nevertheless: the terminal shows what it can of it.
        let mut end = start + letters[start..].iter().take_while(fits).count().max(1);
        if end < letters.len() && !is_space(end) {
            end = (start + 1..end).rev().find(|at| is_space(*at)).unwrap_or(end);
        }
        lines.push(joined(&letters[start..end]));
        start = (end..letters.len()).find(|at| !is_space(*at)).unwrap_or(letters.len());
    }
    if lines.is_empty() { vec![Line::default()] } else { lines }
}

/// Letters of one style are one part.
fn joined(letters: &[(String, Style)]) -> Line<'static> {
    let parts = letters.chunk_by(|one, other| one.1 == other.1);
    Line::from_iter(parts.map(|part| {
        let text: String = part.iter().map(|(letter, _)| letter.as_str()).collect();
        Span::styled(text, part[0].1)
    }))
}

/// Lines of whole items, with two spaces between them.
pub fn rows_of(items: &[&str], room: usize) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for item in items {
        match rows.last_mut() {
            Some(row) if width(row) + 2 + width(item) <= room => *row = format!("{row}  {item}"),
            _ => rows.push(format!(" {item}")),
        }
    }
    rows
}

/// At most so many lines; the last one says that there were more.
pub fn at_most(mut lines: Vec<Line<'static>>, most: usize) -> Vec<Line<'static>> {
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            let text: String = last.spans.iter().map(|span| span.content.as_ref()).collect();
            let style = last.spans.first().map(|span| span.style).unwrap_or_default();
            *last = Line::from(Span::styled(format!("{MORE} {text}"), style));
        }
    }
    lines
}

/// A column of a table, before it is known whether there is room for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    /// Columns of the terminal that the longest of its texts takes, and its head.
    pub whole: usize,
    /// With fewer than so many it is of no use; numbers and addresses are of use only whole.
    pub least: usize,
}

/// Which columns are shown in so much room, by their place, and how wide each is; there is one space between two. They get room in the
/// `order` of their importance, and the first in any case.
pub fn columns(columns: &[Column], order: &[usize], room: usize) -> Vec<(usize, usize)> {
    let mut shown: Vec<(usize, usize)> = Vec::new();
    let mut left = room;
    for place in order {
        let Column { whole, least } = columns[*place];
        let (gap, needs) = if shown.is_empty() { (0, whole.min(least).min(left)) } else { (1, whole.min(least)) };
        if gap + needs <= left {
            left -= gap + needs;
            shown.push((*place, needs));
        }
    }
    // What is left goes to those that are cut, the most important first.
    for (place, given) in &mut shown {
        let more = (columns[*place].whole - *given).min(left);
        *given += more;
        left -= more;
    }
    shown.sort_unstable();
    if let Some((_, given)) = shown.first_mut() {
        *given += left;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_cut_so_that_one_sees_it() {
        assert_eq!(cut("kube-system/prometheus", 22), "kube-system/prometheus");
        assert_eq!(cut("kube-system/prometheus", 11), "kube-sy…eus");
        assert_eq!(cut("界界界界", 5), "界…界");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".to_owned(), String::new()));
    }

    #[test]
    fn lines_are_broken_between_words_and_keep_their_style() {
        let line = Line::from(vec![Span::raw("one two "), Span::styled("three", Style::new().bold())]);
        let lines = wrap(&line, 9);
        let texts: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["one two", "three"]);
        assert_eq!(lines[1].spans[0].style, Style::new().bold());
        let texts: Vec<String> = wrap(&Line::from("abcdefg hi"), 3).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["abc", "def", "g", "hi"]);
        assert_eq!(wrap(&Line::from(""), 3).len(), 1);
        let texts: Vec<String> = at_most(wrap(&line, 3), 2).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["one", "… two"]);
    }

    #[test]
    fn columns_give_way_by_their_importance_and_numbers_stay_whole() {
        let name = Column { whole: 40, least: 12 };
        let number = |whole| Column { whole, least: usize::MAX };
        let all = [name, number(8), number(9)];
        let order = [0, 2, 1];
        assert_eq!(columns(&all, &order, 80), [(0, 61), (1, 8), (2, 9)]);
        assert_eq!(columns(&all, &order, 40), [(0, 21), (1, 8), (2, 9)]);
        assert_eq!(columns(&all, &order, 30), [(0, 20), (2, 9)]);
        assert_eq!(columns(&all, &order, 21), [(0, 12), (1, 8)], "what fits is shown");
        assert_eq!(columns(&all, &order, 5), [(0, 5)]);
    }
}
