//! The list of Services on the screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Cell, Row, Table, TableState};

use super::draw::{color, right};
use super::fit::{Column, columns, cut, width};
use super::view::View;
use super::words::{counted, rate};
use crate::facts::{Order, ServicePage, ServiceRow};

/// Heads; each but the first is of numbers or words that are shown whole or not at all.
const HEADS: [&str; 7] = ["SERVICE", "HEALTH", "READY", "CONN/S", "CONNECTIONS", "ACTIVE", "SCHEDULER"];
/// Columns that have the width of the longest text at least, so that not each new digit moves the others.
const USUAL: [usize; 7] = [0, 8, 5, 7, 11, 6, 9];
/// The important ones first, behind the one that the list is sorted by.
const IMPORTANCE: [usize; 7] = [0, 1, 3, 4, 2, 5, 6];

/// Draws it.
pub fn list(frame: &mut Frame<'_>, area: Rect, view: &View, page: &ServicePage) {
    let room = usize::from(area.width);
    let rows: Vec<[String; 7]> = page.items.iter().map(texts).collect();
    let whole = |at: usize| rows.iter().map(|row| width(&row[at])).max().unwrap_or_default().max(HEADS[at].len());
    // Of a name, so much that most are whole.
    let least = |at| if at == 0 { room * 6 / 10 } else { usize::MAX };
    let all = std::array::from_fn::<_, 7, _>(|at| Column { whole: whole(at).max(USUAL[at]), least: least(at) });
    let shown = columns(&all, &order(view.sort), room);
    let cell = |at: usize, text: &str, given| match at {
        0 => Cell::from(cut(text, given)),
        1 | 6 => Cell::from(text.to_owned()),
        _ => right(text),
    };
    let heads = shown.iter().map(|(at, given)| cell(*at, HEADS[*at], *given));
    let drawn = page.items.iter().zip(&rows).map(|(facts, texts)| {
        Row::new(shown.iter().map(|(at, given)| {
            let cell = cell(*at, &texts[*at], *given);
            if *at == 1 { cell.style(Style::new().fg(color(facts.health.state))) } else { cell }
        }))
    });
    let widths = shown.iter().map(|(_, given)| Constraint::Length(u16::try_from(*given).unwrap_or(u16::MAX)));
    let table = Table::new(drawn, widths)
        .header(Row::new(heads).style(Modifier::UNDERLINED))
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(view.row));
}

/// The cells of a Service, on the screen and as plain text.
pub(super) fn texts(row: &ServiceRow) -> [String; 7] {
    [
        format!("{}/{}", row.namespace, row.name),
        row.health.state.as_str().to_owned(),
        row.endpoints.ready.to_string(),
        rate(row.connections_per_second),
        counted(row.connections),
        counted(row.active),
        row.scheduler.clone(),
    ]
}

/// By importance: the name, what it is sorted by, the others.
fn order(sort: Order) -> Vec<usize> {
    let sorted = match sort {
        Order::Name => 0,
        Order::Health => 1,
        Order::Endpoints => 2,
        Order::Rate => 3,
        Order::Connections => 4,
        Order::Active => 5,
    };
    let mut order = IMPORTANCE.to_vec();
    order[1..].sort_by_key(|at| *at != sorted);
    order
}
