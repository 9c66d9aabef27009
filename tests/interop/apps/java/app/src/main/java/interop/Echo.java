package interop;

/** The service that every application of the tests provides or calls. */
public interface Echo {
    /** Returns the text at once. */
    String echo(String text);

    /** Returns the text when the provider's gate is open. */
    String hold(String text);

    /** Throws IllegalStateException with the text. */
    String fail(String text);
}
