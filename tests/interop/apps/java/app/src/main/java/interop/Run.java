package interop;

import java.util.Map;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Callers that make one call after the other, all at the same time, until the calls are made or the run is stopped.
 *
 * <p>Up to {@link #THREADS} callers are threads that wait, as in most applications; more use the asynchronous calls.
 */
final class Run {
    private static final int THREADS = 64;

    private final Calls calls;
    private final App.Command command;
    private final String filling;
    private final AtomicInteger started = new AtomicInteger();
    private final AtomicInteger finished = new AtomicInteger();
    private final AtomicInteger ok = new AtomicInteger();
    private final AtomicInteger wrong = new AtomicInteger();
    private final Map<String, Integer> errors = new ConcurrentHashMap<>();
    private final Map<String, String> messages = new ConcurrentHashMap<>();
    private volatile boolean stopped;

    Run(Calls calls, App.Command command) {
        this.calls = calls;
        this.command = command;
        filling = "0123456789abcdef".repeat(command.size() / 16 + 1);
    }

    void start() {
        for (int caller = 0; caller < command.callers(); caller++) {
            if (command.callers() <= THREADS) {
                new Thread(this::callAndWait).start();
            } else {
                callAsync();
            }
        }
    }

    void stop() {
        stopped = true;
    }

    /** What happened so far; `done` when nothing more will. */
    Map<String, Object> look() {
        int in = finished.get();
        int out = started.get();
        boolean done = in == out && (stopped || out == command.calls());
        return Map.of("started", out, "finished", in, "ok", ok, "wrong", wrong,
                "errors", errors, "messages", messages, "done", done);
    }

    private void callAndWait() {
        for (String text = next(); text != null; text = next()) {
            String result = null;
            Throwable error = null;
            try {
                result = calls.call(command.target(), command.method(), text);
            } catch (Throwable e) {
                error = e;
            }
            finish(text, result, error);
        }
    }

    private void callAsync() {
        String text = next();
        if (text == null) {
            return;
        }
        calls.callAsync(command.target(), command.method(), text).whenComplete((result, error) -> {
            finish(text, result, error instanceof CompletionException ? error.getCause() : error);
            callAsync();
        });
    }

    /** The next call's text, which no other call has; null if there is no further call. */
    private String next() {
        int number;
        do {
            number = started.get();
            if (stopped || number == command.calls()) {
                return null;
            }
        } while (!started.compareAndSet(number, number + 1));
        String prefix = number + ":";
        return prefix + filling.substring(0, Math.max(0, command.size() - prefix.length()));
    }

    private void finish(String text, String result, Throwable error) {
        if (error != null) {
            String name = calls.name(error);
            errors.merge(name, 1, Integer::sum);
            messages.put(name, String.valueOf(error.getMessage()));
        } else {
            (text.equals(result) ? ok : wrong).incrementAndGet();
        }
        finished.incrementAndGet();
    }
}
