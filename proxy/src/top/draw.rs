//! The screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, TableState};

use super::data::Data;
use super::view::View;
use super::words::{bar, counted, order_name, parts, percent, port, promised, rate, state};
use crate::facts::{EndpointFacts, HealthState, PortFacts, ServiceFacts, ServicePage, ServiceRow};
use crate::state::text::tame;

/// Columns from which on two parts of the head stand in a line, and shares have a bar.
const WIDE: u16 = 110;
/// Characters of a bar.
const BAR: u16 = 20;
/// The longest search, or problem, that is shown.
const LONGEST: usize = 300;

/// Draws all of it. `problem` is why the facts are old.
pub fn draw(frame: &mut Frame<'_>, view: &View, data: &Data, problem: Option<&str>) {
    let wide = frame.area().width >= WIDE;
    let [node, services, syncs, drift] = parts(data);
    let mut lines: Vec<Line<'_>> = if wide {
        vec![Line::from(format!("{node} | {services}")).bold(), Line::from(format!("{syncs} | {drift}"))]
    } else {
        vec![Line::from(node).bold(), Line::from(services).bold(), Line::from(syncs), Line::from(drift)]
    };
    lines.push(match (problem, &data.list) {
        (Some(problem), _) => Line::from(format!("! {}", tame(problem, LONGEST))).fg(Color::Red),
        (None, Some(list)) => list_line(view, list),
        (None, None) => Line::from(""),
    });
    let head_height = Constraint::Length(lines.len() as u16);
    let [head, body, foot] =
        Layout::vertical([head_height, Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(Text::from(lines)), head);
    match (&data.list, &data.service) {
        (Some(page), _) => list(frame, body, view, page),
        (None, Some(Some(facts))) => service(frame, body, view, facts, if wide { BAR } else { 0 }),
        _ => frame.render_widget(Paragraph::new("this Service is not served here; Esc goes back"), body),
    }
    frame.render_widget(Paragraph::new(keys(view)).reversed(), foot);
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

fn list(frame: &mut Frame<'_>, area: Rect, view: &View, page: &ServicePage) {
    let heads = [
        Cell::from("SERVICE"),
        Cell::from("HEALTH"),
        right("READY"),
        right("CONN/S"),
        right("CONNECTIONS"),
        right("ACTIVE"),
        Cell::from("SCHEDULER"),
    ];
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(10),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(9),
    ];
    let table = Table::new(page.items.iter().map(service_row), widths)
        .header(Row::new(heads).style(Modifier::UNDERLINED))
        .row_highlight_style(Modifier::REVERSED);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(view.row));
}

fn service_row(row: &ServiceRow) -> Row<'static> {
    Row::new([
        Cell::from(format!("{}/{}", row.namespace, row.name)),
        Cell::from(row.health.state.as_str()).style(Style::new().fg(color(row.health.state))),
        right(row.endpoints.ready.to_string()),
        right(rate(row.connections_per_second)),
        right(counted(row.connections)),
        right(counted(row.active)),
        Cell::from(row.scheduler.clone()),
    ])
}

fn service(frame: &mut Frame<'_>, area: Rect, view: &View, facts: &ServiceFacts, bar: u16) {
    let [head, body] = Layout::vertical([Constraint::Length(2), Constraint::Min(1)]).areas(area);
    let reason = facts.health.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let policies = &facts.policies;
    let affinity = policies.affinity_seconds.map(|time| format!(", clients kept {time} s")).unwrap_or_default();
    let title = vec![
        Line::from(vec![
            Span::from(format!("{}/{}", facts.namespace, facts.name)).bold(),
            Span::from(format!(" {} ", facts.kind)),
            Span::from(format!("{}{reason}", facts.health.state.as_str())).fg(color(facts.health.state)),
        ]),
        Line::from(format!("traffic policy: internal {}, external {}{affinity}", policies.internal, policies.external)),
    ];
    frame.render_widget(Paragraph::new(title), head);
    let rows = facts.ports.iter().flat_map(|port| {
        std::iter::once(port_row(port)).chain(port.endpoints.iter().map(|endpoint| endpoint_row(endpoint, bar)))
    });
    let heads = [
        Cell::from("ENDPOINT"),
        Cell::from("NODE"),
        Cell::from("STATE"),
        right("WEIGHT"),
        right("SHARE | PROMISED"),
        right("CONNS"),
        right("ACTIVE"),
    ];
    let widths = [
        Constraint::Fill(5),
        Constraint::Fill(2),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(if bar == 0 { 16 } else { bar + 20 }),
        Constraint::Length(8),
        Constraint::Length(6),
    ];
    let table = Table::new(rows, widths).header(Row::new(heads).style(Modifier::UNDERLINED));
    frame.render_stateful_widget(table, body, &mut TableState::new().with_offset(view.row));
}

fn port_row(facts: &PortFacts) -> Row<'static> {
    // Over all columns but the last: its addresses may be many.
    let text = format!("{}, {}, {} ready", port(facts), facts.scheduler, facts.counts.ready);
    Row::new([Cell::from(text).column_span(5), right(counted(facts.connections)), right(counted(facts.active))])
        .style(Style::new().fg(Color::Cyan))
}

fn endpoint_row(endpoint: &EndpointFacts, length: u16) -> Row<'static> {
    let shares = format!("{:>6} | {:>6}", percent(endpoint.share), promised(endpoint));
    Row::new([
        Cell::from(format!("  {}", endpoint.address)),
        Cell::from(endpoint.node.clone().unwrap_or_else(|| "-".to_owned())),
        Cell::from(state(endpoint)),
        right(endpoint.weight.to_string()),
        right(format!("{} {shares}", bar(endpoint, length.into()))),
        right(counted(endpoint.connections)),
        right(counted(endpoint.active)),
    ])
}

fn keys(view: &View) -> &'static str {
    match (view.typing, view.service.is_some(), view.paused) {
        (true, ..) => " type to search, Enter keeps it, Esc clears it",
        (_, true, true) => " PAUSED  p goes on  Esc back  ↑↓ scroll  q quit",
        (_, true, false) => " Esc back  ↑↓ scroll  r refresh  p pause  q quit",
        (_, false, true) => " PAUSED  p goes on  Enter opens  q quit",
        (_, false, false) => " ↑↓ choose  Enter opens  / search  s sort  r refresh  p pause  q quit",
    }
}

fn color(state: HealthState) -> Color {
    match state {
        HealthState::Ok => Color::Green,
        HealthState::Degraded => Color::Yellow,
        HealthState::Down => Color::Red,
    }
}

fn right(text: impl Into<String>) -> Cell<'static> {
    Cell::from(Text::from(text.into()).right_aligned())
}
