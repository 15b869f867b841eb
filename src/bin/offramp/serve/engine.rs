//! The model's side of the server: a thread a slot, each with a session of the one model, and the queue before them.
//!
//! All sessions compute on one pool of threads and take turns, one decode each: on a machine of few cores, sessions that
//! compute at once hold each other up. A request is cancelled when whoever waits for it is gone, even while its prompt is
//! read. Nothing here knows of HTTP, and no prompt or reply is ever logged.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use offramp::{
    CancelHandle, Error, ExitPoint, Exits, GenerateParams, Generation, Model, PromptReport, Sampler, SamplerParams,
    Session, SessionParams, Token, TokenLogprob,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::metrics::Metrics;
use super::reuse::{MAX_CHUNK, Reuse, n_read};
use super::slots::Slots;
use crate::failure::Failure;

/// What a reply is made from.
#[derive(Debug)]
pub struct Request {
    pub prompt: Vec<Token>,
    pub sampler: SamplerParams,
    pub limits: GenerateParams,
    pub exits: Exits,
    pub agreement: f32,
    /// Whether the K/V of a slot may be reused for what the prompt begins with.
    pub reuse: bool,
}

/// One token of a reply.
#[derive(Debug)]
pub struct TokenPiece {
    /// What can be shown now: whole code points, possibly none.
    pub text: String,
    pub exit: Option<ExitPoint>,
    pub logprobs: Vec<TokenLogprob>,
}

/// What became of a request.
#[derive(Debug)]
pub struct Finished {
    /// Text that was held back, because it could have been the beginning of a stop text.
    pub rest: String,
    pub generation: Generation,
    pub prompt: PromptReport,
    pub n_prompt: usize,
    pub exits: Exits,
    pub agreement: f32,
}

/// What comes from a request, in this order: tokens, then one of the others.
#[derive(Debug)]
pub enum Event {
    Token(TokenPiece),
    Finished(Box<Finished>),
    /// It could not be done.
    Failed(Error),
    /// The server stops.
    Stopping,
}

/// Cancels a request, wherever it is.
#[derive(Debug, Default)]
struct Ticket {
    cancelled: AtomicBool,
    /// The session that works on it.
    running: Mutex<Option<CancelHandle>>,
}

impl Ticket {
    fn cancel(&self) {
        let running = lock(&self.running);
        self.cancelled.store(true, Ordering::SeqCst);
        running.iter().for_each(CancelHandle::cancel);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// From here on, until [`Ticket::end`], cancelling stops `session`. False if it has been cancelled already.
    fn begin(&self, session: &Session) -> bool {
        let mut running = lock(&self.running);
        let handle = session.cancel_handle();
        handle.reset();
        *running = Some(handle);
        !self.is_cancelled()
    }

    fn end(&self) {
        if let Some(handle) = lock(&self.running).take() {
            handle.reset();
        }
    }
}

/// A request under way. Dropped before its end, it is cancelled.
#[derive(Debug)]
pub struct Running {
    pub events: UnboundedReceiver<Event>,
    ticket: Arc<Ticket>,
    engine: Arc<Shared>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ticket.cancel();
        let metrics = &self.engine.metrics;
        lock(&self.engine.slots).retain(|job| {
            let left = job.ticket.is_cancelled();
            metrics.left(left.into());
            !left
        });
    }
}

#[derive(Debug)]
struct Job {
    request: Request,
    ticket: Arc<Ticket>,
    /// A reply has at most as many events as the context has tokens, which bounds what waits for a slow reader.
    events: UnboundedSender<Event>,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    slots: Mutex<Slots<Job>>,
    /// The way to each slot's thread; `None` once the server stops.
    mailboxes: Mutex<Option<Vec<mpsc::Sender<Job>>>>,
    metrics: Arc<Metrics>,
}

/// How much is done and waits at once.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub n_slots: usize,
    /// Requests that may wait beside those that are worked on.
    pub max_queue: usize,
}

/// The slots of one model.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub model: Model,
    pub n_ctx: usize,
    pub n_slots: usize,
    pub exits: Exits,
    pub agreement: f32,
}

impl Engine {
    /// Opens the slots' sessions. They have a gate if the model has heads, so that a request may ask for exits.
    ///
    /// # Errors
    /// When a session cannot be opened: memory, most often.
    pub fn start(
        model: &Model,
        mut params: SessionParams,
        size: Size,
        reuse: Reuse,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Failure> {
        let Size { n_slots, max_queue } = size;
        params.gate = model.has_heads();
        params.n_ubatch = params.n_ubatch.min(params.n_batch).min(MAX_CHUNK);
        let chunk = params.n_ubatch.max(1) as usize;
        let mut sessions = vec![Session::new(model, &params)?];
        while sessions.len() < n_slots {
            let next = sessions[0].beside(&params).map_err(|error| {
                Failure::failed(format!("slot {} of {n_slots}: {error}; --parallel says how many", sessions.len() + 1))
            })?;
            sessions.push(next);
        }
        let n_ctx = sessions[0].n_ctx();
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) = sessions.iter().map(|_| mpsc::channel::<Job>()).unzip();
        let shared = Arc::new(Shared {
            slots: Mutex::new(Slots::new(n_slots, max_queue)),
            mailboxes: Mutex::new(Some(mailboxes)),
            metrics,
        });
        let (exits, agreement) = (params.exits, params.agreement);
        let mut threads = Vec::new();
        for (index, (session, inbox)) in sessions.into_iter().zip(inboxes).enumerate() {
            let shared = Arc::clone(&shared);
            let mut slot = Slot { index, session, reuse, chunk, n_read: 0, shared };
            let thread = std::thread::Builder::new().name(format!("slot {index}"));
            let thread = thread.spawn(move || inbox.into_iter().for_each(|job| slot.work_on(job)));
            threads.push(thread.map_err(|error| Failure::failed(format!("cannot start a thread: {error}")))?);
        }
        Ok(Self { shared, threads: Mutex::new(threads), model: model.clone(), n_ctx, n_slots, exits, agreement })
    }

    /// Lets a request wait for a slot; `None` if too many do already, or the server stops.
    pub fn submit(&self, request: Request) -> Option<Running> {
        let (sender, events) = unbounded_channel();
        let ticket = Arc::new(Ticket::default());
        let job = Job { request, ticket: Arc::clone(&ticket), events: sender, since: Instant::now() };
        lock(&self.shared.mailboxes).as_ref()?;
        lock(&self.shared.slots).push(job).ok()?;
        self.shared.dispatch();
        Some(Running { events, ticket, engine: Arc::clone(&self.shared) })
    }

    /// Requests that wait, and slots that work.
    pub fn load(&self) -> (usize, usize) {
        let slots = lock(&self.shared.slots);
        (slots.n_waiting(), slots.n_busy())
    }

    /// Takes no more requests, and tells those that wait.
    pub fn close(&self) {
        *lock(&self.shared.mailboxes) = None;
        lock(&self.shared.slots).retain(|job| {
            // Whoever waited for it may be gone.
            let _ = job.events.send(Event::Stopping);
            false
        });
    }

    /// Waits for the replies under way.
    pub fn join(&self) {
        for thread in lock(&self.threads).drain(..) {
            // A slot catches the panics of its work; there is nothing else to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Gives waiting requests to free slots.
    fn dispatch(&self) {
        let mailboxes = lock(&self.mailboxes);
        let Some(mailboxes) = mailboxes.as_ref() else { return };
        let mut slots = lock(&self.slots);
        while let Some((index, job)) = slots.assign(|job| &job.request.prompt) {
            // The thread ends only when its mailbox has gone.
            let _ = mailboxes[index].send(job);
        }
    }
}

/// One session and the thread's view of it.
struct Slot {
    index: usize,
    session: Session,
    reuse: Reuse,
    /// Tokens that a prompt is read in at once.
    chunk: usize,
    /// Tokens at the beginning of the session that were read as whole chunks.
    n_read: usize,
    shared: Arc<Shared>,
}

impl Slot {
    fn work_on(&mut self, job: Job) {
        self.shared.metrics.waited(job.since.elapsed());
        if job.ticket.begin(&self.session) {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.answer(&job)));
            let event = match outcome {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => {
                    tracing::error!(slot = self.index, "a reply failed: {error}");
                    Event::Failed(error)
                }
                Err(_) => {
                    // What the panic left of the session is not known.
                    self.session.clear();
                    self.n_read = 0;
                    Event::Failed(Error::Gate { found: "a panic, which is a defect of offramp".to_owned() })
                }
            };
            // Whoever waited for it may be gone.
            let _ = job.events.send(event);
        } else {
            self.shared.metrics.left(1);
        }
        job.ticket.end();
        lock(&self.shared.slots).free(self.index, self.session.tokens());
        self.shared.dispatch();
    }

    fn answer(&mut self, job: &Job) -> Result<Event, Error> {
        let request = &job.request;
        self.session.set_exits(request.exits, request.agreement)?;
        let reuse = if request.reuse { self.reuse } else { Reuse::None };
        let kept = reuse.kept(self.session.tokens(), &request.prompt, self.n_read, self.chunk);
        if kept == 0 {
            self.session.clear();
        } else {
            self.session.truncate(kept);
        }
        self.n_read = self.n_read.min(kept);
        let mut sampler = Sampler::new(self.session.model(), &request.sampler)?;
        let prompt = self.session.set_prompt(&request.prompt, &mut |_| {})?;
        self.n_read = n_read(&prompt, self.chunk);
        self.shared.metrics.prompted(&prompt);
        if prompt.cancelled {
            return Ok(Event::Stopping);
        }
        let mut shown = 0;
        let mut first = Some(job.since);
        let generation = self.session.generate(&mut sampler, &request.limits, &mut |event| {
            if let Some(since) = first.take() {
                self.shared.metrics.first_token(since.elapsed());
            }
            shown += event.text.len();
            let piece = TokenPiece { text: event.text.to_owned(), exit: event.exit, logprobs: event.logprobs.to_vec() };
            match job.events.send(Event::Token(piece)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        self.shared.metrics.generated(&generation);
        Ok(Event::Finished(Box::new(Finished {
            rest: generation.text.get(shown..).unwrap_or_default().to_owned(),
            generation,
            prompt,
            n_prompt: request.prompt.len(),
            exits: request.exits,
            agreement: request.agreement,
        })))
    }
}

/// How long replies under way may take after the server was asked to stop.
pub const GRACE: Duration = Duration::from_secs(30);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the mutexes here guard is sound after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
