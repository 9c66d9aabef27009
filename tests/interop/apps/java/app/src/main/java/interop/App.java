package interop;

import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.util.HashMap;
import java.util.Map;

/**
 * An application that its test drives: commands come as lines of JSON on the standard input, and each is answered by a
 * line of JSON on the standard output. The end of the input ends the application in the SDK's orderly way. See
 * tests/interop/apps/README.md.
 */
public final class App {
    private static final ObjectMapper JSON =
            new ObjectMapper().disable(DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES);

    private App() {}

    /**
     * @param role provider or consumer
     * @param registry the mesh registry's address; null without
     * @param address HOST:PORT that a consumer calls without a registry
     * @param port that a provider listens on
     * @param threads of the provider that execute calls; others wait in a queue of `queue` calls
     */
    public record Options(String role, String registry, String address, int port, int threads, int queue) {}

    record Command(String action, String run, String method, int calls, int callers, int size,
            Calls.Target target, boolean open) {}

    /** What an SDK does at the start. */
    public interface Sdk {
        /** Provides the service. */
        void provide(Options options, EchoService service) throws Exception;

        /** Makes ready for calls. */
        Calls consume(Options options) throws Exception;

        /** Withdraws what was provided and closes the connections. */
        void close();
    }

    /** Runs an application until its standard input ends. */
    public static void main(Sdk sdk, String argument) throws Exception {
        PrintStream answers = System.out;
        System.setOut(System.err); // SDKs log to the standard output
        Options options = JSON.readValue(argument, Options.class);
        EchoService service = new EchoService();
        Calls calls = null;
        if (options.role().equals("provider")) {
            sdk.provide(options, service);
        } else {
            calls = sdk.consume(options);
        }
        answers.println("{\"ready\": true}");
        Map<String, Run> runs = new HashMap<>();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            Command command = JSON.readValue(line, Command.class);
            Object answer = switch (command.action()) {
                case "start" -> {
                    Run run = new Run(calls, command);
                    runs.put(command.run(), run);
                    run.start();
                    yield Map.of();
                }
                case "stop" -> {
                    runs.get(command.run()).stop();
                    yield Map.of();
                }
                case "look" -> runs.get(command.run()).look();
                case "gate" -> {
                    service.gate(command.open());
                    yield Map.of();
                }
                case "held" -> Map.of("held", service.held());
                default -> throw new IllegalArgumentException(line);
            };
            answers.println(JSON.writeValueAsString(answer));
        }
        sdk.close();
        System.exit(0);
    }
}
