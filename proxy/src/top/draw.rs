//! The screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph};

use super::data::Data;
use super::fit::{at_most, rows_of, wrap};
use super::list::list;
use super::service::service;
use super::view::View;
use super::words::{order_name, parts};
use crate::facts::{HealthState, ServicePage};
use crate::state::text::tame;

/// Columns from which on two parts of the head stand in a line.
const WIDE: u16 = 110;
/// Lines of the list, or of a Service, that the head leaves in any case.
const LEAST: usize = 4;
/// The longest search, or problem, that is shown.
const LONGEST: usize = 300;

/// Draws all of it. `problem` is why the facts are old.
pub fn draw(frame: &mut Frame<'_>, view: &View, data: &Data, problem: Option<&str>) {
    let (wide, room) = (frame.area().width >= WIDE, usize::from(frame.area().width));
    let keys = rows_of(keys(view), room);
    let [node, services, syncs, drift] = parts(data);
    let mut lines: Vec<Line<'_>> = if wide {
        vec![Line::from(format!("{node} | {services}").bold()), Line::from(format!("{syncs} | {drift}"))]
    } else {
        vec![Line::from(node.bold()), Line::from(services.bold()), Line::from(syncs), Line::from(drift)]
    };
    lines.push(match (problem, &data.list) {
        (Some(problem), _) => Line::from(format!("! {}", tame(problem, LONGEST)).fg(Color::Red)),
        (None, Some(list)) => list_line(view, list),
        (None, None) => Line::from(""),
    });
    // What is told last is needed most: the others give way to it.
    let last = lines.pop().map(|line| wrap(&line, room)).unwrap_or_default();
    let most = usize::from(frame.area().height).saturating_sub(LEAST + keys.len() + last.len()).max(1);
    let mut lines = at_most(lines.iter().flat_map(|line| wrap(line, room)).collect(), most);
    lines.extend(last);
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(lines.len() as u16),
        Constraint::Min(3),
        Constraint::Length(keys.len() as u16),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(Text::from(lines)), head);
    match (&data.list, &data.service) {
        (Some(page), _) => list(frame, body, view, page),
        (None, Some(Some(facts))) => service(frame, body, view, facts, &data.lately),
        _ => {
            let text = wrap(&Line::from("this Service is not served here; Esc goes back"), room);
            frame.render_widget(Paragraph::new(Text::from(text)), body);
        }
    }
    frame.render_widget(Paragraph::new(keys.join("\n")).reversed(), foot);
}

fn list_line(view: &View, list: &ServicePage) -> Line<'static> {
    let more = if list.found > list.items.len() { format!(", the first {}", list.items.len()) } else { String::new() };
    let text = format!("{} of {} Services by {}{more}", list.found, list.total, order_name(view.sort));
    let search = match (view.typing, view.search.is_empty()) {
        (true, _) => format!("   search: {}_", tame(&view.search, LONGEST)),
        (false, false) => format!("   search: {}", tame(&view.search, LONGEST)),
        (false, true) => String::new(),
    };
    Line::from(vec![Span::from(text), Span::from(search).fg(Color::Yellow)])
}

fn keys(view: &View) -> &'static [&'static str] {
    match (view.typing, view.service.is_some(), view.paused) {
        (true, ..) => &["type to search, Enter keeps it, Esc clears it"],
        (_, true, true) => &["PAUSED", "p goes on", "Esc back", "↑↓ scroll", "q quit"],
        (_, true, false) => &["Esc back", "↑↓ scroll", "r refresh", "p pause", "q quit"],
        (_, false, true) => &["PAUSED", "p goes on", "Enter opens", "q quit"],
        (_, false, false) => &["↑↓ choose", "Enter opens", "/ search", "s sort", "r refresh", "p pause", "q quit"],
    }
}

/// How health is coloured.
pub fn color(state: HealthState) -> Color {
    match state {
        HealthState::Ok => Color::Green,
        HealthState::Degraded => Color::Yellow,
        HealthState::Down => Color::Red,
    }
}

/// A number in its column.
pub fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Text::from(text.into()).right_aligned())
}
