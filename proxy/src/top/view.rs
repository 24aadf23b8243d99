//! What is shown, and what keys do to it.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::data::{Data, Wanted};
use crate::facts::Order;
use crate::running::service_name;

/// Rows that a page key moves by.
const PAGE: usize = 20;

/// What is shown.
#[derive(Clone, PartialEq, Debug)]
pub struct View {
    /// The order of the list.
    pub sort: Order,
    /// What the list is searched for.
    pub search: String,
    /// The search is being typed.
    pub typing: bool,
    /// The Service that is looked at by itself.
    pub service: Option<(String, String)>,
    /// The row that is chosen in the list, or the first that is shown of a Service.
    pub row: usize,
    /// Nothing is asked for anew.
    pub paused: bool,
    /// Where the list was when a Service was opened.
    row_of_list: usize,
}

/// What a key asks for beside another view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing.
    None,
    /// Other facts are needed, at once.
    Ask,
    /// The end.
    Quit,
}

impl View {
    /// The first view. `service` is `[NAMESPACE/]NAME`.
    pub fn new(sort: Order, search: &str, service: Option<&str>) -> Self {
        let service = service.map(service_name).map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        Self { sort, search: search.to_owned(), typing: false, service, row: 0, paused: false, row_of_list: 0 }
    }

    /// The facts that it needs.
    pub fn wanted(&self) -> Wanted {
        Wanted { search: self.search.clone(), sort: self.sort, service: self.service.clone() }
    }

    /// A key was pressed while `data` was shown.
    pub fn press(&mut self, key: KeyEvent, data: &Data) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Effect::Quit } else { Effect::None };
        }
        if self.typing {
            return self.press_typing(key.code);
        }
        let rows = rows(data);
        let last = rows.saturating_sub(1);
        match key.code {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return if self.paused { Effect::None } else { Effect::Ask };
            }
            KeyCode::Char('r') => return Effect::Ask,
            KeyCode::Down | KeyCode::Char('j') => self.row = (self.row + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.row = self.row.saturating_sub(1),
            KeyCode::PageDown => self.row = (self.row + PAGE).min(last),
            KeyCode::PageUp => self.row = self.row.saturating_sub(PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.row = 0,
            KeyCode::End | KeyCode::Char('G') => self.row = last,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left if self.service.is_some() => {
                self.service = None;
                self.row = self.row_of_list;
                return Effect::Ask;
            }
            KeyCode::Esc if !self.search.is_empty() => {
                self.search.clear();
                self.row = 0;
                return Effect::Ask;
            }
            _ if self.service.is_some() => {}
            KeyCode::Enter | KeyCode::Right => {
                let chosen = data.list.as_ref().and_then(|list| list.items.get(self.row));
                if let Some(row) = chosen {
                    self.service = Some((row.namespace.clone(), row.name.clone()));
                    self.row_of_list = self.row;
                    self.row = 0;
                    return Effect::Ask;
                }
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('s') => return self.order(1),
            KeyCode::Char('S') => return self.order(Order::ALL.len() - 1),
            _ => {}
        }
        Effect::None
    }

    fn press_typing(&mut self, key: KeyCode) -> Effect {
        match key {
            KeyCode::Enter => {
                self.typing = false;
                return Effect::None;
            }
            KeyCode::Esc => {
                self.typing = false;
                self.search.clear();
            }
            KeyCode::Backspace => drop(self.search.pop()),
            KeyCode::Char(letter) => self.search.push(letter),
            _ => return Effect::None,
        }
        self.row = 0;
        Effect::Ask
    }

    fn order(&mut self, steps: usize) -> Effect {
        let at = Order::ALL.iter().position(|order| *order == self.sort).unwrap_or_default();
        self.sort = Order::ALL[(at + steps) % Order::ALL.len()];
        self.row = 0;
        Effect::Ask
    }

    /// Other facts are there: the chosen row stays within them.
    pub fn fit(&mut self, data: &Data) {
        self.row = self.row.min(rows(data).saturating_sub(1));
    }
}

/// Rows that can be moved through.
fn rows(data: &Data) -> usize {
    match (&data.list, &data.service) {
        (Some(list), _) => list.items.len(),
        (None, Some(Some(service))) => service.ports.iter().map(|port| 1 + port.endpoints.len()).sum(),
        _ => 0,
    }
}
