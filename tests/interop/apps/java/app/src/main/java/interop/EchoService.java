package interop;

/** The provider's side of Echo, with the gate that its test opens and closes. */
public final class EchoService implements Echo {
    private boolean open;
    private int held;

    @Override
    public String echo(String text) {
        return text;
    }

    @Override
    public synchronized String hold(String text) {
        held++;
        try {
            while (!open) {
                wait();
            }
            return text;
        } catch (InterruptedException e) {
            throw new IllegalStateException(e);
        } finally {
            held--;
        }
    }

    @Override
    public String fail(String text) {
        throw new IllegalStateException(text);
    }

    /** Opens or closes the gate. */
    synchronized void gate(boolean open) {
        this.open = open;
        notifyAll();
    }

    /** The calls that wait at the gate. */
    synchronized int held() {
        return held;
    }
}
